//! Reads metrics in the Prometheus text format.

/// The sum of all series of a metric whose labels contain each of `labels` (`name="value"`).
pub fn sum(text: &str, metric: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(metric))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn series_are_chosen_by_name_and_labels() {
        let text =
            "# TYPE a_total counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\"} 4\na_total_more 5\nb 6\n";
        assert_eq!(sum(text, "a_total", &[]), 7.0);
        assert_eq!(sum(text, "a_total", &["x=\"1\"", "y=\"2\""]), 3.0);
        assert_eq!(sum(text, "b", &[]), 6.0);
        assert_eq!(sum(text, "c", &[]), 0.0);
    }
}
