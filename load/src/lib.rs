//! Recorded arrivals, and requests that come as they say. Shared by `medes load` and the experiments: it knows no socket and prints
//! nothing.
//!
//! | room | idea |
//! |---|---|
//! | `trace` | how many requests each function had in each minute, from a file |
//! | `made_up` | the same, when there is no file |
//! | `map` | which functions stand for those of a trace |
//! | `schedule` | the moments at which requests are due |
//! | `open_loop` | sends them then, whether earlier ones have been answered or not |
//! | `tally` | what came back: counts, true percentiles |
//! | `dice` | chance that can be repeated |

pub mod dice;
pub mod made_up;
pub mod map;
pub mod open_loop;
pub mod schedule;
pub mod tally;
pub mod trace;
