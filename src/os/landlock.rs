//! Where a command may read and write (`landlock(7)`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

/// The rights that every kernel with Landlock enforces (5.13).
const LEAST: ABI = ABI::V1;
/// Rights up to this version are denied, too, where the kernel knows them.
const BEST: ABI = ABI::V6;

/// Whether this kernel enforces such rules.
#[must_use]
pub fn is_supported() -> bool {
    create().is_ok()
}

fn create() -> io::Result<RulesetCreated> {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = strict.handle_access(AccessFs::from_all(LEAST)).map_err(io::Error::other)?;
    let ruleset = ruleset.set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(BEST)).map_err(io::Error::other)?;
    // Signals reach nobody outside, since 6.12: not its secondary either.
    let ruleset = ruleset.scope(Scope::Signal).map_err(io::Error::other)?;
    ruleset.create().map_err(io::Error::other)
}

/// A ruleset for `landlock_restrict_self(2)`: below the paths in `read` everything may be read
/// and executed, below those in `write` everything read, written, made and removed, and nothing
/// anywhere else.
///
/// # Errors
/// Where the kernel has no Landlock, or a path cannot be opened.
pub fn ruleset(read: &[PathBuf], write: &[PathBuf]) -> io::Result<OwnedFd> {
    let mut ruleset = create()?;
    let reading = AccessFs::from_read(BEST);
    let writing = AccessFs::from_all(BEST) & !AccessFs::Execute;
    for (path, access) in
        read.iter().map(|path| (path, reading)).chain(write.iter().map(|path| (path, writing)))
    {
        ruleset = add(ruleset, path, access)?;
    }
    Option::<OwnedFd>::from(ruleset).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn add(ruleset: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let named = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let fd = PathFd::new(path).map_err(|error| named(&error))?;
    // A file has no entries: rights on directories would be refused.
    let is_directory = std::fs::metadata(path).map_err(|error| named(&error))?.is_dir();
    let access = if is_directory { access } else { access & AccessFs::from_file(BEST) };
    ruleset.add_rule(PathBeneath::new(fd, access)).map_err(|error| named(&error))
}
