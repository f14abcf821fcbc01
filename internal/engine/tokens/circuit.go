package tokens

import "time"

const (
	window    = 16 // answers looked back on
	firstWait = 5 * time.Second
	maxWait   = 2 * time.Minute
)

// circuit keeps requests from waiting for engines that most of the time do not
// tell tokens within the budget. It opens when more than half of the last
// answers were late or none, and then lets one request at a time try, after a
// wait that doubles with each try that is in vain.
type circuit struct {
	bad   uint32 // bits of the last answers, the latest lowest
	seen  int
	until time.Time     // when the next try may be; zero while closed
	wait  time.Duration // before the try after that
	trial bool          // somebody tries
}

// ready reports whether engines may be asked now.
func (c *circuit) ready(now time.Time) bool {
	return c.until.IsZero() || !c.trial && !now.Before(c.until)
}

// allow is ready for one who goes on to ask, and reports whether that is the
// trial of an open circuit. Its answer must be reported.
func (c *circuit) allow(now time.Time) (ok, trial bool) {
	if !c.ready(now) {
		return false, false
	}
	c.trial = !c.until.IsZero()
	return true, c.trial
}

// report takes an answer, good when it came within the budget. It reports
// whether the circuit has opened or closed by it.
func (c *circuit) report(now time.Time, good, trial bool) (changed bool) {
	switch {
	case c.until.IsZero():
	case !trial:
		return false // asked before the circuit opened
	case good:
		*c = circuit{wait: firstWait}
		return true
	default:
		c.trial, c.wait = false, min(2*c.wait, maxWait)
		c.until = now.Add(c.wait)
		return false
	}
	c.bad <<= 1
	if !good {
		c.bad |= 1
	}
	c.seen = min(c.seen+1, window)
	n := 0
	for i := range c.seen {
		n += int(c.bad >> i & 1)
	}
	if c.seen < window/2 || 2*n <= c.seen {
		return false
	}
	c.until = now.Add(c.wait)
	return true
}

// state names what the circuit does at the time: closed, open or trying.
func (c *circuit) state() string {
	switch {
	case c.until.IsZero():
		return "closed"
	case c.trial:
		return "trying"
	}
	return "open"
}
