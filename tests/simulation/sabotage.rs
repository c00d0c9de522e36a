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
    /// takes who leaves for its age for one that drains.
    HurryTheWorn,

    /// takes the end of its observer for that of its principal.
    MistakeObserver,
    /// starts an observer once only.
    ForgetObserver,
    /// keeps its observer where a reload wants none.
    KeepObserver,
    /// believes that its observer always answers.
    TrustObserver,
    /// stops where its observer cannot start.
    NeedObserver,
    /// has its observer leave when a stop begins.
    HurryObserver,
    /// ends before its observer has.
    LeaveObserver,
    /// has the secondaries drained when a principal takes over from another.
    DrainAtPromotion,
    /// takes any end of a principal for one that has handed over.
    PromoteUnasked,

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
    /// reports to whoever has the client's place by now.
    ReportByPlace,
    /// says everything twice.
    ReportTwice,
    /// does not tell that somebody came for a job.
    ForgetStarts,
    /// does not tell that nobody came for a job.
    ForgetExpiries,
    /// leaves no record of jobs of which no secondary can tell.
    ForgetRecords,
    /// does not look why a job failed.
    ForgetReasons,
    /// does not hear that somebody came uninvited.
    ForgetUninvited,
    /// kills who leaves for its age when its grace is over.
    LimitTheWorn,
    /// takes over before its predecessor has ended.
    TakeOverEarly,
    /// does not hand over the jobs that its clients follow.
    ForgetFollowed,
    /// serves on while it hands over, and after.
    ServeAfterAll,

    // A secondary that ...
    /// claims without a swap.
    ClaimWithoutSwap,
    /// believes doorbells only.
    NeverLook,
    /// goes on accepting while it drains.
    KeepListeners,
    /// gives a tracked job to whoever has its address.
    ForgetTracked,
    /// gives a tracked job to whoever has any jeton.
    IgnoreJetons,
    /// lets connections in before it knows of every tracked job.
    LetInBlindly,
    /// takes who says nothing at once for plain.
    NeverWait,
    /// drains when its principal hands over.
    DrainAtHandover,

    // An observer that ...
    /// goes when it hears an order, but not because of what the watchdog has written.
    BelieveOrders,
}
