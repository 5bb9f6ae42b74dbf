//! What it costs to be in a component: to enter and leave one, and to allocate inside.

use criterion::{Criterion, criterion_group, criterion_main};
use page_memory_allocator::{Component, PageAllocator};
use std::future::{Future, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Waker};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

static ONE: Component = Component::new("one");
static OTHER: Component = Component::new("other");

fn components(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("components");
    group.bench_function("enter", |bencher| bencher.iter(|| ONE.enter(|| black_box(1))));
    group.bench_function("inside, dropped", |bencher| bencher.iter(|| drop(black_box(ONE.inside()))));
    group.bench_function("enter within another", |bencher| {
        bencher.iter(|| ONE.enter(|| OTHER.enter(|| black_box(1))));
    });
    let mut context = Context::from_waker(Waker::noop());
    group.bench_function("poll of a future", |bencher| {
        bencher.iter(|| pin!(black_box(ready(1))).poll(&mut context));
    });
    group.bench_function("poll of a wrapped future", |bencher| {
        bencher.iter(|| pin!(ONE.wrap(black_box(ready(1)))).poll(&mut context));
    });
    group.bench_function("a block outside", |bencher| bencher.iter(|| black_box(Box::new(1))));
    group.bench_function("a block inside", |bencher| {
        let _inside = ONE.inside();
        bencher.iter(|| black_box(Box::new(1)));
    });
    group.finish();
}

criterion_group!(benches, components);
criterion_main!(benches);
