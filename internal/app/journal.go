package app

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/journal"
)

// journalFile is a journal on disk, flushed every second so that a crash loses
// little.
type journalFile struct {
	writer *journal.Writer
	file   *os.File
	buf    *lockedBuffer
	stop   chan struct{}
	done   sync.WaitGroup
}

// lockedBuffer lets the pool append under its own lock while the flusher runs.
type lockedBuffer struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Write(p)
}

func (b *lockedBuffer) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Flush()
}

// openJournal creates path, with the pool's name worked in when it is not the
// only one.
func openJournal(path, poolName string, only bool) (*journalFile, error) {
	if !only {
		ext := filepath.Ext(path)
		path = strings.TrimSuffix(path, ext) + "-" + strings.NewReplacer("/", "_", string(filepath.Separator), "_").Replace(poolName) + ext
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journalFile{file: f, buf: &lockedBuffer{w: bufio.NewWriterSize(f, 1<<20)}, stop: make(chan struct{})}
	j.writer = journal.NewWriter(j.buf)
	j.done.Go(j.flushLoop)
	return j, nil
}

func (j *journalFile) flushLoop() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = j.buf.flush() // the writer meets the same error and tells it
		case <-j.stop:
			return
		}
	}
}

// close flushes what the pool, which must be closed, has recorded.
func (j *journalFile) close() error {
	close(j.stop)
	j.done.Wait()
	if err := errors.Join(j.writer.Flush(), j.buf.flush(), j.file.Close()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
