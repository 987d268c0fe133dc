"""How much of the dream is true: the dream-to-reality gap of an agent, measured, judged and written down.

Reality is deterministic given (seed, actions), so "same start, same actions, dream against reality" is exact.

    task            what the environment declares of itself
    episodes        real episodes, with the states that filtered them
    forks           moments of them, and reality played on from there under other actions
    transfer        dream return against real return, and the exact split of the difference
    phantom         rewards that reality does not pay
    values          the critic against what really came
    horizons        pictures, rewards and ends at every distance from the last look; horizon_report: their table
    similarity      SSIM, and the track by its colour
    disagreement    does it know when it is wrong? AUROC of an ensemble of small heads (models/ensemble.py)
    dialect         what a dreamed state shows, looked at again
    filmstrips      the best, the median and the worst dream
    temperature, blindfold, policies        three further questions
    intervals       how sure a mean may be
    headline        g, its parts, the alarms; verdict: FAITHFUL, OPTIMISTIC, PESSIMISTIC, EXPLOITED or INCONCLUSIVE
    measure         all of it, as gap.json
    report, page, svg       gap.json -> gap.html
"""
