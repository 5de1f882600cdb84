//! Errors of the playground name what is missing or in use, and the remedy.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output};

fn playground(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
    command.args(arguments).env_remove("E2E_KUBECONFIG");
    change(&mut command);
    command.output().unwrap()
}

#[test]
fn the_error_names_a_missing_go_and_the_remedy() {
    let empty = tempfile::tempdir().unwrap();
    let output = playground(&[], |command| {
        command.env("PATH", empty.path()).env("XDG_CACHE_HOME", empty.path());
        command.env_remove("JOB_HANDLER_KUBERNETES_BIN");
    });
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for text in ["`go` is not on the PATH", "install Go 1.26", "JOB_HANDLER_KUBERNETES_BIN"] {
        assert!(errors.contains(text), "{errors}");
    }
}

#[test]
fn the_error_names_a_port_in_use_and_the_remedy() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = playground(&["--port", &port], |_| {});
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for text in [&*format!("port {port} on 127.0.0.1 is in use"), "choose another port"] {
        assert!(errors.contains(text), "{errors}");
    }
}

#[test]
fn the_error_names_a_configured_program_that_does_not_exist() {
    let output = playground(&[], |command| {
        command.env("JOB_HANDLER_KUBERNETES_BIN", "/nowhere/kubernetes");
    });
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(errors.contains("JOB_HANDLER_KUBERNETES_BIN names /nowhere/kubernetes"), "{errors}");
}
