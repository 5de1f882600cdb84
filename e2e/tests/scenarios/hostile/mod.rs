//! What tenants, strangers and silent nodes try, and why it does no harm.

mod bounds;
mod crowding;
mod memory;
mod results;
mod rights;
mod silent_nodes;
mod tenant;
