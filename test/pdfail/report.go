package main

import (
	"fmt"
	"time"
)

// report prints what was seen, as a table.
func report(all []outcome) {
	fmt.Println("| connector | what happens | times | requests | retried | errors | broken off after the first byte | wrong answers | recovery p50 | max | legs ended p50 | max | blocks left |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	for i := range all {
		o := &all[i]
		times := fmt.Sprint(o.injected)
		if o.missed > 0 {
			times += fmt.Sprintf(" (%d befell nobody)", o.missed)
		}
		failed := fmt.Sprint(o.errors)
		if o.excused > 0 {
			failed += fmt.Sprintf(" (and %d while there was none)", o.excused)
		}
		ended, endedMost := "", ""
		if o.row.leaves {
			ended, endedMost = short(median(o.cancel)), short(most(o.cancel))
		}
		fmt.Printf("| %s | %s | %s | %d | %d | %s | %d | %d | %s | %s | %s | %s | %d |\n", o.connector, o.row.name, times, o.requests, o.retried,
			failed, o.broken, o.wrong, short(median(o.recovery)), short(most(o.recovery)), ended, endedMost, o.left.blocks)
	}
	for i := range all {
		for _, why := range all[i].why {
			fmt.Printf("\n%s, %s: %s", all[i].connector, all[i].row.key, why)
		}
	}
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// mostMissed is the share of injections that may befall nobody.
const mostMissed = 0.1

// judge holds what was seen to the goals.
func judge(all []outcome) (goals int, missed []string) {
	for i := range all {
		o := &all[i]
		hold := func(met bool, format string, args ...any) {
			if goals++; !met {
				missed = append(missed, o.connector+", "+o.row.key+": "+fmt.Sprintf(format, args...))
			}
		}
		hold(o.failed == nil, "%v", o.failed)
		hold(o.errors == 0, "%d clients saw an error", o.errors)
		hold(o.wrong == 0, "%d wrong answers", o.wrong)
		hold(o.left.blocks == 0, "%d blocks left", o.left.blocks)
		hold(o.left.legs == 0 && o.notes == 0, "%d legs left running, %d after a client had gone", o.left.legs, o.notes)
		hold(o.left.ledger == "", "the gateway's ledger: %s", o.left.ledger)
		hold(o.unrecovered == 0 && most(o.recovery) <= o.row.bound, "recovery took %s, more than %s", short(most(o.recovery)), short(o.row.bound))
		hold(float64(o.missed) <= mostMissed*float64(o.injected), "%d of %d injections befell nobody", o.missed, o.injected)
		if o.row.leaves {
			hold(most(o.cancel) <= cancelBound, "legs ended %s after their client had left, more than %s", short(most(o.cancel)), short(cancelBound))
		}
	}
	return goals, missed
}
