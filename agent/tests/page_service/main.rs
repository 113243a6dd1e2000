//! The page service and its reader on loopback: every page as it is, and whatever a peer does, a typed error in bounded
//! time and never a wrong page.

#[path = "../kernel_roads/holder.rs"]
#[allow(dead_code, reason = "shared with the tests of the roads, which need more of it")]
mod holder;
mod honest;
mod hostile;
mod killed;
mod onesided;
mod secured;
mod support;
