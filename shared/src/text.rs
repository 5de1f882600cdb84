//! Texts for people: amounts in messages, tables and statuses, and what strangers wrote, made safe to show.

use std::{borrow::Cow, fmt::Write};

/// Bytes: `0`, `512B`, `12.0Ki`, `3.4Mi`, `1.5Gi`.
pub fn human_bytes(bytes: u64) -> String {
    let (unit, size) = match bytes {
        0 => return "0".to_owned(),
        1..1024 => return format!("{bytes}B"),
        1024..1_048_576 => ("Ki", 1_u64 << 10),
        1_048_576..1_073_741_824 => ("Mi", 1 << 20),
        _ => ("Gi", 1 << 30),
    };
    format!("{:.1}{unit}", bytes as f64 / size as f64)
}

/// Seconds: `9s`, `12m`, `3h20m`, `2d`.
pub fn human_seconds(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 if s % 3600 >= 60 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// Indexes as Kubernetes writes them: `1,3-5,7`.
pub fn ranges(mut indexes: Vec<u32>) -> String {
    indexes.sort_unstable();
    indexes.dedup();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(index) => *end = index,
            _ => ranges.push((index, index)),
        }
    }
    let range = |(from, to): (u32, u32)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
}

/// Whether a character moves the cursor, changes the order of the text around it, or cannot be seen: control characters
/// (C0, DEL, C1), bidirectional and zero-width ones, line separators, and the tags that repeat ASCII invisibly
/// (Unicode's `Bidi_Control` and `Default_Ignorable_Code_Point`, without the variation selectors of emoji).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180e}'
                | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
                | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The text on one line, with what [`is_unsafe`] escaped as in JSON (`\n`, `\u001b`), so that it may also stand in JSON.
/// Every text from outside passes through here on its way to Events, statuses, answers, logs and terminals.
pub fn escape_unsafe(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unsafe(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Cuts `text` to at most `max` bytes at a character boundary, and marks the cut.
pub fn truncate(text: &mut String, max: usize) {
    const MARK: &str = "…";
    if text.len() > max {
        let mut end = max.saturating_sub(MARK.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal_and_a_unit() {
        for (bytes, text) in [
            (0, "0"),
            (20, "20B"),
            (12 << 10, "12.0Ki"),
            (1 << 20, "1.0Mi"),
            (3 << 29, "1.5Gi"),
            (3 << 40, "3072.0Gi"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn what_could_deceive_a_reader_is_escaped() {
        for (text, escaped) in [
            ("build-7: grün 𝄞 👍\u{fe0f}", "build-7: grün 𝄞 👍\u{fe0f}"),
            ("\u{1b}[2Jgone", "\\u001b[2Jgone"),
            ("one\nERROR two\r\t\u{7f}\u{9b}", "one\\nERROR two\\r\\t\\u007f\\u009b"),
            ("admin\u{202e}txt\u{2066}", "admin\\u202etxt\\u2066"),
            ("pay\u{200b}pal\u{feff}\u{2028}", "pay\\u200bpal\\ufeff\\u2028"),
            ("tag\u{e0041}", "tag\\udb40\\udc41"),
        ] {
            assert_eq!(escape_unsafe(text), escaped);
            let json = format!("\"{}\"", escape_unsafe(text));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text, "it may stand in JSON");
        }
    }

    #[test]
    fn seconds_have_the_units_that_matter() {
        for (seconds, text) in
            [(-3, "0s"), (9, "9s"), (720, "12m"), (7200, "2h"), (12_000, "3h20m"), (200_000, "2d")]
        {
            assert_eq!(human_seconds(seconds), text);
        }
    }
}
