//! Documents parsed into trees of owned values.

use std::fmt::Write;

use fastrand::Rng;
use serde_json::Value;

use super::{Job, Tally, random_below};

/// Parses a JSON document into values and drops it, several times.
pub fn json() -> Job {
    const PARSES: usize = 5;
    let text = json_text();
    Box::new(move || {
        let mut tally = Tally::default();
        for _ in 0..PARSES {
            let document: Value = serde_json::from_str(&text).expect("the generator writes JSON");
            walk(&document, &mut tally);
        }
        tally
    })
}

/// Counts a value and all below it.
fn walk(value: &Value, tally: &mut Tally) {
    match value {
        Value::Null => tally.add(1),
        Value::Bool(flag) => tally.add(u64::from(*flag)),
        Value::Number(number) => tally.add(number.as_u64().unwrap_or(2)),
        Value::String(text) => tally.add(text.len() as u64),
        Value::Array(values) => values.iter().for_each(|value| walk(value, tally)),
        Value::Object(fields) => fields.values().for_each(|value| walk(value, tally)),
    }
}

/// About 8 MiB of records as a web service would send them.
fn json_text() -> String {
    const LENGTH: usize = 8 << 20;
    const TAGS: [&str; 6] = ["new", "used", "in stock", "sold out", "heavy", "caf\\u00e9"];
    let mut rng = Rng::with_seed(10);
    let mut text = String::with_capacity(LENGTH + 4096);
    text.push('[');
    let mut separator = "";
    for id in 0.. {
        if text.len() > LENGTH {
            break;
        }
        let price = f64::from(rng.u32(..100_000)) / 100.0;
        let active = rng.bool();
        write!(
            text,
            "{separator}{{\"id\": {id}, \"name\": \"Item number {id}\", \"price\": {price}, \
             \"active\": {active}, \"parent\": null, \"address\": {{\"street\": \"{} Long Street\", \
             \"zip\": \"{:05}\", \"position\": [{}, {}]}}, \"tags\": [",
            rng.u32(1..400),
            rng.u32(..100_000),
            rng.f32(),
            rng.f32(),
        )
        .expect("writing to a string succeeds");
        for tag in 0..random_below(&mut rng, 5) {
            let comma = if tag == 0 { "" } else { ", " };
            let name = TAGS[random_below(&mut rng, TAGS.len())];
            write!(text, "{comma}\"{name}\"").expect("writing to a string succeeds");
        }
        text.push_str("]}");
        separator = ",\n";
    }
    text.push(']');
    text
}

/// Parses Rust source into a syntax tree and drops it, several times.
pub fn rust_source() -> Job {
    const PARSES: usize = 2;
    let text = source_text();
    Box::new(move || {
        let mut tally = Tally::default();
        for _ in 0..PARSES {
            let file = syn::parse_file(&text).expect("the templates are Rust");
            for item in &file.items {
                tally.add(weight(item));
            }
        }
        tally
    })
}

/// A number that depends on what was parsed.
fn weight(item: &syn::Item) -> u64 {
    let weight = match item {
        syn::Item::Fn(function) => function.block.stmts.len(),
        syn::Item::Struct(structure) => structure.fields.len(),
        syn::Item::Enum(enumeration) => enumeration.variants.len(),
        syn::Item::Impl(implementation) => implementation.items.len(),
        syn::Item::Trait(definition) => definition.items.len(),
        syn::Item::Mod(module) => module.content.as_ref().map_or(0, |(_, items)| items.len()),
        _ => 1,
    };
    weight as u64
}

/// About 1 MiB of Rust source: what people write, repeated under different names.
fn source_text() -> String {
    const LENGTH: usize = 1 << 20;
    let mut rng = Rng::with_seed(11);
    let mut text = String::with_capacity(LENGTH + 8192);
    for number in 0.. {
        if text.len() > LENGTH {
            break;
        }
        let template = TEMPLATES[random_below(&mut rng, TEMPLATES.len())];
        let other = random_below(&mut rng, 1000).to_string();
        text.push_str(&template.replace("@N", &number.to_string()).replace("@M", &other));
    }
    text
}

/// Items of several kinds; `@N` stands for a name's number, `@M` for a constant.
const TEMPLATES: [&str; 6] = [
    r#"
/// A point with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Point@N<T: Copy + Default, const D: usize> where T: std::ops::Add<Output = T> {
    pub name: String,
    coordinates: [T; D],
    pub(crate) parents: Vec<Option<std::sync::Arc<Point@N<T, D>>>>,
    callback: Box<dyn Fn(&T, usize) -> Result<T, std::io::Error> + Send + 'static>,
}
"#,
    r#"
#[non_exhaustive]
pub enum Event@N<'a> {
    Started { at: u64, by: &'a str },
    Moved(i32, i32),
    #[allow(dead_code)]
    Failed(Box<dyn std::error::Error + 'a>),
    Stopped = @M,
}
"#,
    r#"
impl<'a> Handler@N<'a> {
    pub const LIMIT: usize = @M * 4 + 1;

    /// Finds the first element that matches.
    pub fn find<F>(&self, elements: &[Element], mut matches: F) -> Option<&'a Element>
    where
        F: FnMut(&Element) -> bool,
    {
        for (index, element) in elements.iter().enumerate().filter(|(i, _)| i % 2 == 0) {
            if index > Self::LIMIT && !element.is_empty() {
                return None;
            } else if let Some(found) = self.table.get(&element.key) {
                match found.kind {
                    Kind::Plain | Kind::Quoted if matches(element) => return Some(found),
                    Kind::Nested { ref inner, .. } => self.stack.borrow_mut().push(inner.clone()),
                    _ => continue,
                }
            }
        }
        None
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.table.clear();
        self.count = self.count.checked_add(@M).ok_or_else(|| Error::overflow("count", @M))?;
        Ok(())
    }
}
"#,
    r#"
pub fn compute_@N(input: &[f64], weights: Option<&HashMap<String, f64>>) -> Result<f64, String> {
    let mut sum = 0.0_f64;
    let scale = (input.len() as f64 / @M.5).sqrt() * 2.0 - 1e-3;
    let names = ["alpha", "beta", "gamma"].map(|name| name.to_owned() + "_@N");
    'outer: for window in input.windows(3) {
        let [first, second, third] = window else { unreachable!("windows of three") };
        while sum < 1000.0 {
            sum += match (first > second, second > third) {
                (true, true) => first * scale,
                (false, true) => -(second + third) / 2.0,
                _ => break 'outer,
            };
        }
        let closure = move |x: f64| -> f64 { if x.is_nan() { 0.0 } else { x.mul_add(scale, @M.0) } };
        sum = closure(sum) + weights.and_then(|w| w.get(&names[0])).copied().unwrap_or(1.0);
    }
    println!("sum of {} values: {sum:.3}", input.len());
    if sum.is_finite() { Ok(sum) } else { Err(format!("not finite: {sum}")) }
}
"#,
    r#"
pub trait Store@N: Send + Sync {
    type Key: Ord + Clone;
    type Value<'a>: AsRef<[u8]> where Self: 'a;
    const NAME: &'static str = "store @N";
    fn get<'a>(&'a self, key: &Self::Key) -> Option<Self::Value<'a>>;
    fn put(&mut self, key: Self::Key, value: Vec<u8>) -> bool {
        let _ = (key, value.len() + @M);
        false
    }
}
"#,
    r#"
mod tests_@N {
    use super::{Point, Event, compute as calculate};
    static TABLE: &[(u8, &str)] = &[(0x1f, "one"), (b'x', "two\n"), (@M as u8, r"three")];

    #[test]
    fn sums_are_right() {
        let values = vec![1.0, 2.5, @M.25];
        assert_eq!(calculate(&values, None).unwrap().round() as i64, @M, "for {values:?}");
        unsafe { std::ptr::write_volatile(TABLE.as_ptr() as *mut u8, 0) };
        let range = (0..=@M).step_by(7).map(u64::from).collect::<Vec<_>>();
        assert!(range.len() << 1 > 0 || range[..2] == [0, 7]);
    }
}
"#,
];
