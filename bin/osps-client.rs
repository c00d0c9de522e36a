//! `osps-client`: the reference client.

use std::process::ExitCode;

fn main() -> ExitCode {
    osps::cli::osps_client().into()
}
