//! Has processes of a sandbox make system calls, and takes from them what these made: userfaultfds above all.
//!
//! The only room that knows ptrace. The work is done by a helper, `medes-agent inject`, which the agent talks to through
//! [`Operator`]: it [holds](Operator::hold) processes, has them make calls, puts them back and lets them go.

mod helper;
mod making;
mod operator;
mod stop;

pub use helper::main;
pub(crate) use making::{ForWhat, make_userfaultfd};
pub use operator::OperatorError;
pub(crate) use operator::{Operation, Operators};
pub use stop::{InjectError, Stage};
