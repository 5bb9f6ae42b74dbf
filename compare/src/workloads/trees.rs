//! Linked structures built by one thread and dropped by another.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::Tally;

/// Builds structures one by one and lets another thread walk and drop them.
fn build_and_drop<T: Send + 'static>(count: u64, build: fn(u64) -> T, walk: fn(&T, &mut Tally)) -> Tally {
    // No queue: at most one structure waits while the next is built.
    let (sender, receiver) = sync_channel(0);
    let dropper = thread::spawn(move || {
        let mut tally = Tally::default();
        for structure in receiver {
            walk(&structure, &mut tally);
            drop(structure);
        }
        tally
    });
    for number in 0..count {
        sender.send(build(number)).expect("the other thread reads until the end");
    }
    drop(sender);
    dropper.join().expect("the other thread does not panic")
}

struct Node {
    name: Box<str>,
    value: u64,
    children: Vec<Arc<Node>>,
}

impl Node {
    fn build(depth: u32, number: u64) -> Arc<Node> {
        const FAN_OUT: u64 = 4;
        let children = match depth {
            0 => Vec::new(),
            _ => (0..FAN_OUT).map(|child| Node::build(depth - 1, number * FAN_OUT + child)).collect(),
        };
        Arc::new(Node { name: format!("node {number} at {depth}").into_boxed_str(), value: number, children })
    }

    fn walk(&self, tally: &mut Tally) {
        tally.add(self.value + self.name.len() as u64);
        for child in &self.children {
            child.walk(tally);
        }
    }
}

/// A tree of reference-counted nodes, each with a name and a vector of children.
pub fn tree() -> Tally {
    const TREES: u64 = 20;
    build_and_drop(TREES, |number| Node::build(8, number), |root, tally| root.walk(tally))
}

struct Link {
    value: u64,
    next: Option<Box<Link>>,
}

/// A singly linked list that unlinks itself iteratively, or a long one would overflow the stack.
struct List(Option<Box<Link>>);

impl Drop for List {
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut link) = next {
            next = link.next.take();
        }
    }
}

/// Long linked lists.
pub fn list() -> Tally {
    const LISTS: u64 = 60;
    const LENGTH: u64 = 200_000;
    build_and_drop(
        LISTS,
        |number| {
            let mut list = List(None);
            for value in 0..LENGTH {
                let next = list.0.take();
                list.0 = Some(Box::new(Link { value: value ^ number, next }));
            }
            list
        },
        |list, tally| {
            let mut next = list.0.as_deref();
            while let Some(link) = next {
                tally.add(link.value);
                next = link.next.as_deref();
            }
        },
    )
}
