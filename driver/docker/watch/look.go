// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"slices"
	"time"
)

// lane is a bounded queue of inspects.
type lane struct {
	limit   int
	running int
	waiting []*record
}

// lookState is where a record's inspect is. A record has at most one, so that its results come in
// order, and any number of wishes for another make one.
type lookState struct {
	stage   stage
	seq     uint64 // of the record when the running inspect began
	again   bool   // wished for while running
	retries int
	lane    *lane       // where it is queued or runs
	timer   *time.Timer // of stage pausing
}

type stage int

const (
	idle stage = iota
	queued
	running
	pausing // before the next try
)

func (l *lookState) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// look has the container inspected: it tells of a change that the event did not carry.
func (w *Watcher) look(r *record) {
	r.seq++
	switch {
	case r.look.stage == queued && r.look.lane != &w.early:
		return
	case r.look.stage == running:
		r.look.again = true
		return
	}
	r.look.stop()
	r.look.retries = 0
	w.enqueue(r, &w.fresh)
}

// enqueue puts those first that have failed less often: one that was merely slow once does not wait
// behind all those that hang.
func (w *Watcher) enqueue(r *record, l *lane) {
	r.look.stage, r.look.lane = queued, l
	at := len(l.waiting)
	for at > 0 && l.waiting[at-1].look.retries > r.look.retries {
		at--
	}
	l.waiting = slices.Insert(l.waiting, at, r)
	w.pump(l)
}

// pump starts as many inspects as the lane has room for.
func (w *Watcher) pump(l *lane) {
	for l.running < l.limit && len(l.waiting) > 0 {
		r := l.waiting[0]
		l.waiting = l.waiting[1:]
		if w.records[r.id] != r || r.look.stage != queued || r.look.lane != l {
			continue // gone, or wished for in another lane
		}
		l.running++
		r.look.stage, r.look.seq, r.look.again = running, r.seq, false
		// Longer each time: an inspect that is given up goes on waiting in the engine.
		limit := min(w.timing.inspect<<min(r.look.retries, 10), w.timing.slow)
		if l == &w.early {
			limit = w.timing.early
		}
		go w.inspect(r, l, limit)
	}
}

func (w *Watcher) inspect(r *record, l *lane, limit time.Duration) {
	ctx, cancel := context.WithTimeout(w.ctx, limit)
	defer cancel()
	c, err := w.client.inspect(ctx, r.id)
	w.post(func() {
		l.running--
		if w.records[r.id] == r {
			w.looked(r, c, err)
		}
		w.pump(l)
	})
}

func (w *Watcher) looked(r *record, c container, err error) {
	r.look.stage = idle
	switch {
	case errors.Is(err, errNotFound):
		w.drop(r, r.info != nil)
		w.settled(r.id)
	case r.look.again || err == nil && r.look.seq != r.seq:
		w.look(r)
	case err == nil:
		w.inspected(r, c)
	case r.look.lane == &w.early:
		w.drop(r, false) // it is being started, which its start event will tell
	default:
		w.retry(r, err)
	}
}

// retry tries again among the slow ones, for as long as the container is there.
func (w *Watcher) retry(r *record, err error) {
	wait := min(w.timing.retryMin<<min(r.look.retries, 10), w.timing.retryMax)
	r.look.retries++
	w.log.WithField("container", r.id).WithError(err).Debug("inspect failed; trying again")
	r.look.stage = pausing
	r.look.timer = time.AfterFunc(wait, func() {
		w.post(func() {
			if w.records[r.id] == r && r.look.stage == pausing {
				w.enqueue(r, &w.slow)
			}
		})
	})
}
