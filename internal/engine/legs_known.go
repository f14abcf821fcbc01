package engine

import (
	"context"
	"sync"
)

// known is what engines have told of themselves, by which process told it, until
// it is dropped. Who asks at the same time asks once. Its zero value is ready to
// use.
type known[T any] struct {
	mu sync.Mutex
	of map[Party]*answered[T]
}

// answered is an answer, or one that somebody waits for.
type answered[T any] struct {
	done  chan struct{} // closed when it is there
	value T
	err   error
}

// maxKnown bounds what is remembered: more processes than a fleet has were there
// before.
const maxKnown = 4096

// get returns what is known, or asks for it. Whoever asks does so for all that
// wait, and so goes on though its own request has ended, but not for long.
func (k *known[T]) get(ctx context.Context, p Party, ask func(context.Context) (T, error)) (T, error) {
	k.mu.Lock()
	a := k.of[p]
	if a == nil {
		a = k.addLocked(p)
		k.mu.Unlock()
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
		defer cancel()
		if a.value, a.err = ask(brief); a.err != nil {
			k.forget(p, a)
		}
		close(a.done)
		return a.value, a.err
	}
	k.mu.Unlock()
	select {
	case <-a.done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// peek returns what is known, if it is.
func (k *known[T]) peek(p Party) (value T, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.of[p]; a != nil {
		select {
		case <-a.done:
			return a.value, true
		default:
		}
	}
	return value, false
}

// put notes what an engine has told unasked.
func (k *known[T]) put(p Party, value T) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.addLocked(p)
	a.value = value
	close(a.done)
}

// drop forgets what is known of an engine.
func (k *known[T]) drop(p Party) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.of, p)
}

// forget drops a, unless something newer is in its place.
func (k *known[T]) forget(p Party, a *answered[T]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of[p] == a {
		delete(k.of, p)
	}
}

func (k *known[T]) addLocked(p Party) *answered[T] {
	if k.of == nil || len(k.of) >= maxKnown {
		k.of = map[Party]*answered[T]{}
	}
	a := &answered[T]{done: make(chan struct{})}
	k.of[p] = a
	return a
}
