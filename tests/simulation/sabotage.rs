//! Ways in which a role can be wrong, to see that the audit notices.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,

    // A watchdog that ...
    /// does not read answers.
    DropAnswers,
    /// does not tell the tree of ends.
    ForgetExits,
    /// believes that a process is ready when it is started.
    TrustTooEarly,
    /// has no clock.
    ForgetTimeouts,
    /// does not hear that it shall stop.
    IgnoreStops,
    /// starts each principal twice.
    StartTwice,
    /// kills twice.
    KillTwice,
    /// has half of `kill_after`.
    HalvePatience,
    /// has a much shorter `period`.
    RushKills,
    /// signals whoever has the pid now.
    SignalByPid,
    /// does not compare start times.
    MeetByPid,

    // A principal that ...
    /// does not finish its predecessor's last step.
    ForgetRedo,
    /// enters each end twice.
    SettleTwice,
    /// does not fail what a dead incarnation had claimed.
    KeepDeadClaims,
    /// enters ends without an intent.
    NoIntent,
    /// does not write down which incarnation it starts.
    ReuseNames,
    /// believes that nobody survived its predecessor.
    ForgetLiving,
    /// never looks at the tables by itself.
    NeverReconcile,
    /// answers its clients before it knows who gets the job.
    ForgetWaiting,

    // A secondary that ...
    /// claims without a swap.
    ClaimWithoutSwap,
    /// believes doorbells only.
    NeverLook,
    /// goes on accepting while it drains.
    KeepListeners,
}
