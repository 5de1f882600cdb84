//! Amounts as readable text, for messages, tables and statuses.

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
    fn seconds_have_the_units_that_matter() {
        for (seconds, text) in
            [(-3, "0s"), (9, "9s"), (720, "12m"), (7200, "2h"), (12_000, "3h20m"), (200_000, "2d")]
        {
            assert_eq!(human_seconds(seconds), text);
        }
    }
}
