package discovery

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"penstock.dev/penstock/internal/engine"
)

func TestParseListTellsEveryProblem(t *testing.T) {
	all, err := ParseList("http://a:8000/, http://b:8000")
	if err != nil || len(all) != 2 || all[0].URL != "http://a:8000" || all[1].Name != "b:8000" {
		t.Errorf("%+v %v", all, err)
	}
	_, err = ParseList("a:1,http://b,http://b/,http://c/v1")
	for _, want := range []string{`"a:1" must start`, `"http://b" is listed twice`, "without /v1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in: %v", want, err)
		}
	}
	if _, err := ParseList(" , "); err == nil {
		t.Error("took an empty list")
	}
}

type lister map[string]int // failures before the answer

func (l lister) Models(_ context.Context, base string) ([]engine.Model, error) {
	if l[base] > 0 {
		l[base]--
		return nil, errors.New("refused")
	}
	return []engine.Model{{ID: "m"}}, nil
}

func TestStaticAsksUntilTheServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		n := 0
		Static(t.Context(), []Found{{URL: "http://a"}}, lister{"http://a": 3}, slog.New(slog.DiscardHandler), func(f Found) {
			n++
			if f.Models[0].ID != "m" {
				t.Errorf("found %+v", f)
			}
		})
		if took := time.Since(start); n != 1 || took != 3500*time.Millisecond {
			t.Errorf("found %d after %v, want one after 0.5+1+2 s", n, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		Static(ctx, []Found{{URL: "http://b"}}, lister{"http://b": 1000}, slog.New(slog.DiscardHandler), func(Found) { t.Error("found a dead server") })
	})
}
