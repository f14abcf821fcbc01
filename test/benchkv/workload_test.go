//go:build linux

package main

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestWorkloadFileHoldsTheWorkload(t *testing.T) {
	w := generate(60_000, 5, 3)
	name := filepath.Join(t.TempDir(), "workload")
	if err := w.writeFile(name); err != nil {
		t.Fatal(err)
	}
	got, err := readFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(w, got) {
		t.Error("what is read is not what was written")
	}
}

func TestWorkloadRefusesWhatItCannotRead(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"store 0 0 0 3", "a store of what there is not"},
		{"store 9 0 0 1", "a store of what there is not"},
		{"query 1 1", "a query for what there is not"},
		{"query 0", "cannot read"},
		{"chain 3 1 ff", "a base that there is not"},
		{"chain 0", "without base"},
		{"noise", "cannot read"},
		{"store 0 0 0 1 2", "5 numbers"},
		{"query x 1", "invalid syntax"},
	} {
		w := &workload{}
		for _, ok := range []string{"endpoints 2", "chain -1 0 a b"} {
			if err := w.line(ok); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.line(c.line); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.line, err, c.want)
		}
	}
}
