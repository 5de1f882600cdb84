//! What tenants, strangers and silent nodes try, and why it does no harm.

mod bounds;
mod client_certificates;
mod crowding;
mod groups;
mod memory;
mod metrics;
mod policy_entries;
mod results;
mod rights;
mod silent_nodes;
mod strangers;
mod tenant;
