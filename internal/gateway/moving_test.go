package gateway

import (
	"sync"
	"testing"
)

// An answer begins or is given up, never both: a client that has seen its beginning
// must get the rest.
func TestFate(t *testing.T) {
	var f fate
	if !f.begin() || f.giveUp() || !f.begin() {
		t.Error("what has begun was given up")
	}
	f.is.Store(0)
	if !f.giveUp() || f.begin() || f.giveUp() {
		t.Error("what was given up began")
	}
	for range 1000 {
		var f fate
		var both sync.WaitGroup
		var begun, over bool
		both.Go(func() { begun = f.begin() })
		both.Go(func() { over = f.giveUp() })
		both.Wait()
		if begun == over {
			t.Fatalf("begun %v, given up %v", begun, over)
		}
	}
}
