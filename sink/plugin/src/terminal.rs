//! Escapes untrusted text for terminals: control characters, and characters that make text display as something else.

use std::{fmt::Write as _, io};

use serde_json::Value;

use job_handler_shared::text::is_unsafe;

/// Escapes a stream of bytes whose pieces may split characters.
///
/// Printable characters, line ends (LF and CR LF) and tabs stay. Everything else becomes `\xNN` per byte: other control
/// characters, bidirectional and zero-width ones, and bytes that are not UTF-8.
#[derive(Debug, Default)]
pub(crate) struct TerminalEscaper {
    /// An incomplete character or a carriage return at the end of the last piece; the next piece decides.
    carry: Vec<u8>,
}

impl TerminalEscaper {
    pub(crate) fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
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
                    let complete = text.strip_suffix('\r').unwrap_or(text);
                    escape_text(complete, out);
                    self.carry.extend_from_slice(&rest[complete.len()..]);
                    return;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    escape_text(std::str::from_utf8(valid).unwrap_or_default(), out);
                    let Some(length) = error.error_len() else {
                        self.carry.extend_from_slice(bad);
                        return;
                    };
                    push_hex(&bad[..length], out);
                    rest = &bad[length..];
                }
            }
        }
    }

    /// Escapes an incomplete character at the end of the stream.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        push_hex(&std::mem::take(&mut self.carry), out);
    }
}

/// Escapes what is written through it.
pub(crate) struct EscapingWriter<'a, W> {
    out: &'a mut W,
    escaper: TerminalEscaper,
    escaped: Vec<u8>,
}

impl<'a, W> EscapingWriter<'a, W> {
    pub(crate) fn new(out: &'a mut W) -> Self {
        Self { out, escaper: TerminalEscaper::default(), escaped: Vec::new() }
    }
}

impl<W: io::Write> io::Write for EscapingWriter<'_, W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.escaped.clear();
        self.escaper.push(piece, &mut self.escaped);
        self.out.write_all(&self.escaped)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A value as YAML.
///
/// YAML has escapes only within double quotes, and the encoder does not use these for all characters that are unsafe
/// here. Text with such characters is returned as JSON, which is YAML too.
pub(crate) fn escaped_yaml(value: &Value) -> String {
    let yaml = serde_norway::to_string(value).unwrap_or_default();
    if yaml.chars().all(|c| c == '\n' || !is_unsafe(c)) {
        return yaml;
    }
    let json = serde_json::to_string_pretty(value).unwrap_or_default();
    escape_json(&json) + "\n"
}

/// Escapes text that may have several lines.
pub fn escape_lines(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut escaper = TerminalEscaper::default();
    escaper.push(text.as_bytes(), &mut out);
    escaper.finish(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Escapes text that must stay on one line.
pub(crate) fn escape_line(text: &str) -> String {
    escape_lines(text).replace('\n', "\\n").replace('\t', " ").replace('\r', "")
}

/// Replaces control characters in JSON by `\uNNNN`: serde_json escapes those in ASCII only.
pub(crate) fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_unsafe(c) {
            // These occur in JSON only within strings.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

fn escape_text(text: &str, out: &mut Vec<u8>) {
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let keep = match c {
            '\n' | '\t' => true,
            '\r' => characters.peek() == Some(&'\n'),
            c => !is_unsafe(c),
        };
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        if keep { out.extend_from_slice(bytes) } else { push_hex(bytes, out) }
    }
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        for (text, escaped) in [
            ("plain\tand\r\nlines\n", "plain\tand\r\nlines\n"),
            ("grün 𝄞", "grün 𝄞"),
            ("\u{1b}[2J", "\\x1b[2J"),
            ("10%\r20%", "10%\\x0d20%"),
            ("bell\u{7} del\u{7f} nul\0", "bell\\x07 del\\x7f nul\\x00"),
            ("csi \u{9b}2J", "csi \\xc2\\x9b2J"),
            ("admin\u{202e}txt", "admin\\xe2\\x80\\xaetxt"),
            ("pay\u{200b}pal", "pay\\xe2\\x80\\x8bpal"),
        ] {
            assert_eq!(escape_lines(text), escaped);
        }
        assert_eq!(escape_line("a\nb\tc"), "a\\nb c");
        assert_eq!(escape_json("{\"a\": \"\u{9b}\u{202e}ü\"}\n"), "{\"a\": \"\\u009b\\u202eü\"}\n");
    }

    #[test]
    fn yaml_has_no_unsafe_characters() {
        let plain = serde_json::json!({"message": "a: \u{1b}[31mred"});
        assert_eq!(escaped_yaml(&plain), "message: \"a: \\e[31mred\"\n");
        let reversed = serde_json::json!({"message": "admin\u{202e}txt"});
        let yaml = escaped_yaml(&reversed);
        assert!(yaml.contains("admin\\u202etxt"), "{yaml}");
        assert_eq!(serde_norway::from_str::<Value>(&yaml).unwrap(), reversed);
    }

    #[test]
    fn the_writer_escapes_what_comes_in_pieces() {
        let mut out = Vec::new();
        io::Write::write_fmt(&mut EscapingWriter::new(&mut out), format_args!("a{}b\n", "\u{9b}")).unwrap();
        assert_eq!(out, b"a\\xc2\\x9bb\n");
    }

    proptest! {
        /// The output is safe UTF-8, and does not depend on how the input is split.
        #[test]
        fn the_split_into_pieces_does_not_change_the_output(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..12), text in ".{0,20}",
        ) {
            let run = |pieces: &[&[u8]]| {
                let (mut escaper, mut out) = (TerminalEscaper::default(), Vec::new());
                pieces.iter().for_each(|piece| escaper.push(piece, &mut out));
                escaper.finish(&mut out);
                String::from_utf8(out).unwrap()
            };
            let mut all: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            all.extend(text.as_bytes().chunks(1));
            let whole = all.concat();
            let escaped = run(&all);
            prop_assert_eq!(&escaped, &run(&[&whole]));
            let harmless = |c: char| c == '\n' || c == '\t' || c == '\r' || !is_unsafe(c);
            prop_assert!(escaped.chars().all(harmless));
            prop_assert!(escaped.matches('\r').count() <= escaped.matches("\r\n").count());
        }
    }
}
