//! Makes foreign text fit for a terminal: what a terminal would act on, or would show as something else, is written out.

use std::fmt::Write;

/// Escapes a stream of bytes, whose pieces may split characters.
///
/// Kept as they are: printable characters, line ends (also CR LF) and tabs. Everything else, bytes that are not UTF-8
/// included, becomes `\xNN`, one per byte; so do the characters that turn the direction of text around.
#[derive(Debug, Default)]
pub struct Escaper {
    /// Begun, and not to be judged before the next piece: a character, or a carriage return.
    carry: Vec<u8>,
}

impl Escaper {
    /// Escapes the next piece.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let joined;
        let mut rest = if self.carry.is_empty() {
            piece
        } else {
            self.carry.extend_from_slice(piece);
            joined = std::mem::take(&mut self.carry);
            &joined[..]
        };
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    let whole = text.strip_suffix('\r').unwrap_or(text);
                    escape_text(whole, out);
                    self.carry.extend_from_slice(&rest[whole.len()..]);
                    return;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    escape_text(std::str::from_utf8(valid).unwrap_or_default(), out);
                    let Some(length) = error.error_len() else {
                        self.carry.extend_from_slice(bad);
                        return;
                    };
                    hex(&bad[..length], out);
                    rest = &bad[length..];
                }
            }
        }
    }

    /// Escapes what was begun and did not go on.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        hex(&std::mem::take(&mut self.carry), out);
    }
}

/// A text of several lines.
pub fn lines(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut escaper = Escaper::default();
    escaper.push(text.as_bytes(), &mut out);
    escaper.finish(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// A text that has to stay within its line.
pub fn line(text: &str) -> String {
    lines(text).replace('\n', "\\n").replace('\t', " ").replace('\r', "")
}

/// JSON in which control characters stand as `\uNNNN`: serde_json leaves those beyond ASCII as they are.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_acted_on(c) {
            // Only in strings: JSON's own characters are none of these.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn escape_text(text: &str, out: &mut Vec<u8>) {
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let stays = match c {
            '\n' | '\t' => true,
            '\r' => characters.peek() == Some(&'\n'),
            c => !is_acted_on(c),
        };
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        if stays { out.extend_from_slice(bytes) } else { hex(bytes, out) }
    }
}

/// Control characters (C0, DEL, C1), and those that turn the direction of text around, so that it reads as another.
fn is_acted_on(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_written_out() {
        for (text, escaped) in [
            ("plain\tand\r\nlines\n", "plain\tand\r\nlines\n"),
            ("grün 𝄞", "grün 𝄞"),
            ("\u{1b}[2J", "\\x1b[2J"),
            ("10%\r20%", "10%\\x0d20%"),
            ("bell\u{7} del\u{7f} nul\0", "bell\\x07 del\\x7f nul\\x00"),
            ("csi \u{9b}2J", "csi \\xc2\\x9b2J"),
            ("admin\u{202e}txt", "admin\\xe2\\x80\\xaetxt"),
        ] {
            assert_eq!(lines(text), escaped);
        }
        assert_eq!(line("a\nb\tc"), "a\\nb c");
        assert_eq!(json("{\"a\": \"\u{9b}\u{202e}ü\"}\n"), "{\"a\": \"\\u009b\\u202eü\"}\n");
    }

    proptest! {
        /// However it is cut: the same text, valid UTF-8, without a control byte, and everything readable kept.
        #[test]
        fn cuts_change_nothing(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..12), text in ".{0,20}",
        ) {
            let run = |pieces: &[&[u8]]| {
                let (mut escaper, mut out) = (Escaper::default(), Vec::new());
                pieces.iter().for_each(|piece| escaper.push(piece, &mut out));
                escaper.finish(&mut out);
                String::from_utf8(out).unwrap()
            };
            let mut all: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            all.extend(text.as_bytes().chunks(1));
            let whole = all.concat();
            let escaped = run(&all);
            prop_assert_eq!(&escaped, &run(&[&whole]));
            let harmless = |c: char| c == '\n' || c == '\t' || c == '\r' || !is_acted_on(c);
            prop_assert!(escaped.chars().all(harmless));
            prop_assert!(escaped.matches('\r').count() <= escaped.matches("\r\n").count());
        }
    }
}
