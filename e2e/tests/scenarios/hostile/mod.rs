//! What strangers on the network and tenants try, and why it does no harm.

mod bounds;
mod memory;
