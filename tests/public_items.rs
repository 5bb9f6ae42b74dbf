//! The rule of the crate's documentation about examples, kept by reading the sources: every public type, function and
//! method is used in an example, and the modules that are public for tests have one at their heads.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ImplItem, Item, ItemImpl, Lit, Meta, Type, Visibility};

/// Public for tests, fuzzing and benches.
const PLUMBING: [&str; 4] = ["page_table", "runs", "size_class", "units"];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files below `directory`.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            files(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

fn parsed(path: &Path) -> syn::File {
    let source = fs::read_to_string(path).expect("a source is text");
    syn::parse_file(&source).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of an attribute that is a line, or a block, of documentation; also of one for some features only.
fn documentation(attribute: &Attribute) -> Option<String> {
    let text = |meta: &Meta| match meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    if !attribute.path().is_ident("cfg_attr") {
        return text(&attribute.meta);
    }
    let list = attribute.meta.require_list().ok()?;
    let metas = list.parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated);
    metas.ok()?.iter().find_map(text)
}

/// The code in documentation.
#[derive(Default)]
struct Examples {
    code: String,
}

impl Examples {
    fn read(&mut self, attributes: &[Attribute]) {
        let mut inside = false;
        for text in attributes.iter().filter_map(documentation) {
            for line in text.lines() {
                if line.trim_start().starts_with("```") {
                    // Features choose between two beginnings of one example.
                    inside = line.trim() != "```" || !inside;
                } else if inside {
                    self.code.push_str(line);
                    self.code.push('\n');
                }
            }
        }
    }

    /// Whether `name` is a word of an example.
    fn use_type(&self, name: &str) -> bool {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        self.code.split(|c| !word(c)).any(|used| used == name)
    }

    /// Whether a function or method of that name is called, or named by its path.
    fn use_function(&self, name: &str) -> bool {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        self.code.match_indices(name).any(|(at, _)| {
            let (before, after) = (&self.code[..at], &self.code[at + name.len()..]);
            (before.ends_with('.') || before.ends_with("::")) && !after.starts_with(word)
        })
    }
}

impl<'a> Visit<'a> for Examples {
    fn visit_file(&mut self, file: &'a syn::File) {
        self.read(&file.attrs);
        visit::visit_file(self, file);
    }

    fn visit_item(&mut self, item: &'a Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            _ => &Vec::new(),
        };
        self.read(attributes);
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, method: &'a syn::ImplItemFn) {
        self.read(&method.attrs);
    }
}

/// What the crate's root makes public, beside modules.
fn exported() -> HashSet<String> {
    fn names(tree: &syn::UseTree, found: &mut HashSet<String>) {
        match tree {
            syn::UseTree::Path(path) => names(&path.tree, found),
            syn::UseTree::Name(name) => drop(found.insert(name.ident.to_string())),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| names(tree, found)),
            syn::UseTree::Rename(_) | syn::UseTree::Glob(_) => panic!("the root exports names one by one"),
        }
    }
    let mut found = HashSet::new();
    for item in parsed(&sources().join("lib.rs")).items {
        if let Item::Use(item) = item
            && matches!(item.vis, Visibility::Public(_))
        {
            names(&item.tree, &mut found);
        }
    }
    found
}

/// The public methods of an `impl` of an exported type.
fn methods(item: &ItemImpl, exported: &HashSet<String>) -> Vec<String> {
    let Type::Path(path) = &*item.self_ty else { return Vec::new() };
    let of = path.path.segments.last().expect("a type has a name").ident.to_string();
    if item.trait_.is_some() || !exported.contains(&of) {
        return Vec::new();
    }
    let public = item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(method) if matches!(method.vis, Visibility::Public(_)) => {
            Some(method.sig.ident.to_string())
        }
        _ => None,
    });
    public.collect()
}

#[test]
fn every_public_type_function_and_method_is_used_in_an_example() {
    let mut paths = Vec::new();
    files(&sources(), &mut paths);
    let mut examples = Examples::default();
    let files: Vec<(PathBuf, syn::File)> =
        paths.into_iter().map(|path| (path.clone(), parsed(&path))).collect();
    files.iter().for_each(|(_, file)| examples.visit_file(file));
    let exported = exported();

    let (mut seen, mut missing) = (0, Vec::new());
    for (path, file) in &files {
        let inner = path.strip_prefix(sources()).expect("a source");
        if PLUMBING
            .iter()
            .any(|module| inner.starts_with(module) || inner.with_extension("") == Path::new(module))
        {
            continue;
        }
        let mut expect = |name: &str, used: bool| {
            seen += 1;
            if !used {
                missing.push(format!("{}: {name}", inner.display()));
            }
        };
        for item in &file.items {
            let of_type = match item {
                Item::Struct(item) => Some(&item.ident),
                Item::Enum(item) => Some(&item.ident),
                Item::Type(item) => Some(&item.ident),
                Item::Trait(item) => Some(&item.ident),
                _ => None,
            };
            if let Some(name) = of_type.map(ToString::to_string).filter(|name| exported.contains(name)) {
                expect(&name, examples.use_type(&name));
            }
            match item {
                Item::Fn(item) if exported.contains(&item.sig.ident.to_string()) => {
                    let name = item.sig.ident.to_string();
                    expect(&name, examples.use_function(&name));
                }
                Item::Impl(item) => {
                    methods(item, &exported)
                        .iter()
                        .for_each(|name| expect(name, examples.use_function(name)));
                }
                _ => {}
            }
        }
    }
    assert!(seen > 80, "only {seen} public items were found");
    assert!(missing.is_empty(), "in no example, and so without one:\n{}", missing.join("\n"));
}

#[test]
fn modules_that_are_public_for_tests_begin_with_an_example() {
    for module in PLUMBING {
        let mut head = Examples::default();
        head.read(&parsed(&sources().join(module).with_extension("rs")).attrs);
        assert!(head.code.contains("use page_memory_allocator::"), "{module} has no example at its head");
    }
}
