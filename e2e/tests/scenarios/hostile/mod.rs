//! Attacks: what a tenant with the role `edit` in one namespace can do, and what not.

mod results;
mod tenant;
