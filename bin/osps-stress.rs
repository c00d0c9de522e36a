//! `osps-stress`: many clients, and what became of their requests.

use std::process::ExitCode;

fn main() -> ExitCode {
    osps::cli::osps_stress().into()
}
