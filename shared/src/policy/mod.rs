//! Policies: their types, which of them apply to a Job, and what they say together.
//!
//! In: `ClusterJobPolicy` and `JobPolicy` objects as the apiserver stores them. Out: one [`effective::EffectivePolicy`] per
//! Job. Start reading at [`spec`].
//!
//! | file | holds |
//! | --- | --- |
//! | [`spec`] | the two CRDs; their parts in [`stamp`], [`limit`], [`results`], [`cleanup`], [`status`] |
//! | [`bytes`], [`schema`] | byte amounts (`64Mi`); schema parts that a derive does not write |
//! | [`mod@reference`], [`parsed`] | names a policy; a policy with its selectors parsed |
//! | [`set`] | all policies of the cluster, and which of them apply to a Job |
//! | [`label_keys`] | the label keys that policies name: all that memory keeps of a Job's labels |
//! | [`index`] | the policies and namespaces that a program has seen |
//! | [`effective`], [`range`] | what several policies say together; a number under a default and a maximum |
//! | [`presence`] | which policies a webhook replica enforces, as its Lease says it |
//! | [`install_defaults`] | creates the policies of the base install, once |

pub mod bytes;
pub mod cleanup;
pub mod effective;
pub mod index;
pub mod install_defaults;
pub mod label_keys;
pub mod limit;
pub mod namespace_share;
pub mod parsed;
pub mod presence;
pub mod range;
pub mod reference;
pub mod results;
pub(crate) mod schema;
pub mod set;
pub mod spec;
pub mod stamp;
pub mod status;
