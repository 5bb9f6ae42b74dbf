//! Forks of a process whose threads allocate from the process heap.

use page_memory_allocator::PageAllocator;

#[path = "common/child.rs"]
mod child;
#[path = "common/fork_storm.rs"]
mod fork_storm;
#[path = "common/forked.rs"]
mod forked;
#[path = "common/random.rs"]
mod random;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

#[test]
fn children_forked_while_threads_allocate_allocate_too() {
    let output = child::in_child(
        |_| {},
        || {
            fork_storm::storm(|| {
                if let Err(violation) = HEAP.check() {
                    panic!("{violation:?}");
                }
            })
        },
    );
    assert!(output.status.success(), "{:?}\n{}", output.status, child::text(&output.stderr));
}
