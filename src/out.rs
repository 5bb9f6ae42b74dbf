//! Text on its way to the system, behind a buffer on the stack.

use crate::sys::{self, Stream, file::File};
use core::fmt::{self, Write};

/// Where text goes.
#[derive(Debug)]
pub(crate) enum Target<'f> {
    Stream(Stream),
    File(&'f File),
}

/// A writer to the system that allocates nothing.
#[derive(Debug)]
pub(crate) struct Out<'f> {
    target: Target<'f>,
    text: [u8; 4096],
    len: usize,
}

impl<'f> Out<'f> {
    /// Writes all that `write` writes. What the system refuses is lost: false if that is a part of a file.
    pub(crate) fn print(target: Target<'f>, write: impl FnOnce(&mut Out<'f>) -> fmt::Result) -> bool {
        let mut out = Out { target, text: [0; 4096], len: 0 };
        // Fails only when the system refused what came before.
        write(&mut out).and_then(|()| out.flush()).is_ok()
    }

    fn flush(&mut self) -> fmt::Result {
        let text = &self.text[..self.len];
        self.len = 0;
        match &self.target {
            Target::Stream(stream) => sys::write(*stream, text),
            Target::File(file) if !file.write(text) => return Err(fmt::Error),
            Target::File(_) => {}
        }
        Ok(())
    }
}

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            if self.len == self.text.len() {
                self.flush()?;
            }
            let fits = rest.len().min(self.text.len() - self.len);
            self.text[self.len..self.len + fits].copy_from_slice(&rest[..fits]);
            self.len += fits;
            rest = &rest[fits..];
        }
        Ok(())
    }
}
