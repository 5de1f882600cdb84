//! What tenants, strangers and silent nodes try, and why it does no harm.

mod crowding;
mod results;
mod rights;
mod silent_nodes;
mod tenant;
