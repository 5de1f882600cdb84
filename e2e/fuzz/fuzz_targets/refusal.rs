//! Runs [`job_handler_fuzz::refusal`] on the inputs of libFuzzer.
#![no_main]
#![allow(unsafe_code, reason = "the macro exports a symbol for libFuzzer")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| job_handler_fuzz::refusal::check(bytes));
