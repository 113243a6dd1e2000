//! Records shared between the kernel programs and the agent.
#![no_std]
