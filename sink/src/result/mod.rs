//! Stores results.
//!
//! In: a packed result ([`packed`]). Out: ConfigMaps or Secrets ([`storage`] hides the difference). [`writer`] commits a
//! result, [`seal`] marks it as the sink's, [`lookup`] finds one, [`manifest_update`] changes its pending announcements. The
//! format is in [`job_handler_shared::result`]. Read [`writer`] first.

pub(crate) mod lookup;
pub(crate) mod manifest_update;
pub mod packed;
pub(crate) mod seal;
mod seal_key;
mod shards;
pub(crate) mod storage;
pub(crate) mod writer;
