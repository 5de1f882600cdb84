//! The ground itself: the cluster boots, Jobs fare as their annotations say, nothing is left behind.

#[path = "ground/boot.rs"]
mod boot;
#[path = "ground/logs.rs"]
mod logs;
#[path = "ground/pods.rs"]
mod pods;
