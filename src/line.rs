//! A line of text on the stack, for what is to be said where nothing can be allocated.

use crate::sys;
use core::fmt;

/// Text in a fixed buffer; what does not fit is cut off.
pub(crate) struct Line {
    text: [u8; 240],
    len: usize,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line { text: [0; 240], len: 0 }
    }

    /// The text.
    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }

    /// Writes the text to standard error.
    pub(crate) fn report(&self) {
        sys::write(sys::Stream::Error, &self.text[..self.len]);
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.len().min(self.text.len() - self.len);
        self.text[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}
