//! A real Kubernetes to test on; demo, playground, scenarios, benchmarks.
