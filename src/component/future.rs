//! Futures inside components.

use super::Component;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// A future that is polled inside a component; made by [`Component::wrap`].
///
/// ```
/// use page_memory_allocator::{Component, InComponent};
/// use std::future::{Ready, ready};
///
/// static REQUESTS: Component = Component::new("requests");
/// // What it was made with is outside still: only polls are inside.
/// let answer: InComponent<'_, Ready<u32>> = REQUESTS.wrap(ready(42));
/// # let _ = answer;
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless they are polled"]
pub struct InComponent<'c, F> {
    component: &'c Component,
    future: F,
}

impl<'c, F> InComponent<'c, F> {
    pub(super) fn new(component: &'c Component, future: F) -> InComponent<'c, F> {
        InComponent { component, future }
    }
}

impl<F: Future> Future for InComponent<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let component = self.component;
        // SAFETY: the future is pinned with the whole: nothing moves it out, nor drops it but with the whole.
        let future = unsafe { self.map_unchecked_mut(|whole| &mut whole.future) };
        component.enter(|| future.poll(context))
    }
}
