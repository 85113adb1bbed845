//! The simfluence program; [`simfluence::program`] is all of it.

#[cfg(feature = "torch")]
mod environment;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "torch")]
    environment::let_threads_sleep();
    ExitCode::from(simfluence::program::run(std::env::args_os()))
}
