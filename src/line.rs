//! A line of text on the stack, for what is to be said where nothing can be allocated.

use crate::sys;
use core::fmt;

/// Text in a fixed buffer. What does not fit is cut off, and the line ended there.
pub(crate) struct Line {
    text: [u8; 240],
    len: usize,
    is_cut: bool,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line { text: [0; 240], len: 0, is_cut: false }
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
        if self.is_cut {
            return Ok(());
        }
        // One byte is left for the end of the line.
        let room = self.text.len() - 1 - self.len;
        self.is_cut = text.len() > room;
        let fits = (0..=room.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        self.text[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if self.is_cut {
            self.text[self.len] = b'\n';
            self.len += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn a_line_that_is_too_long_is_cut_between_characters_and_ends_all_the_same() {
        let mut line = Line::new();
        writeln!(line, "{:a<200}", "").unwrap();
        assert_eq!((line.text().len(), line.text().ends_with("a\n")), (201, true));
        let mut line = Line::new();
        writeln!(line, "{:a<238}é and more", "").unwrap();
        writeln!(line, "nothing more").unwrap();
        assert_eq!((line.text().len(), line.text().ends_with("a\n")), (239, true));
        let mut line = Line::new();
        writeln!(line, "{:a<239}", "").unwrap();
        assert_eq!((line.text().len(), line.text().ends_with("a\n")), (240, true));
    }
}
