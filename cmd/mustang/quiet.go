// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// repeatAfter is how long a warning that is the same is not written again: what fails is tried again every few seconds, for
	// hours perhaps.
	repeatAfter = 10 * time.Minute
	// maxRemembered bounds the warnings that are remembered.
	maxRemembered = 1000
)

// quiet writes a warning when it is new or has changed, and then now and then with how often it came. Those of calls and requests,
// which have a number, are written each.
type quiet struct {
	logrus.Formatter
	now func() time.Time

	mu   sync.Mutex
	told map[string]*repeats
}

// repeats is a warning that was written at a time, and how often it has come since.
type repeats struct {
	at   time.Time
	more int
}

// Format implements [logrus.Formatter]; nothing is written for what is repeated.
func (q *quiet) Format(e *logrus.Entry) ([]byte, error) {
	if _, numbered := e.Data["request"]; e.Level > logrus.WarnLevel || numbered {
		return q.Formatter.Format(e)
	}
	more, write := q.tell(fmt.Sprint(e.Message, e.Data)) // fields are printed in order
	if !write {
		return nil, nil
	}
	if more > 0 {
		e.Data["repeated"] = more
	}
	return q.Formatter.Format(e)
}

// tell says whether to write a warning, and how often it has come unwritten.
func (q *quiet) tell(text string) (more int, write bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	r := q.told[text]
	if r != nil && now.Sub(r.at) < repeatAfter {
		r.more++
		return 0, false
	}
	if r != nil {
		more = r.more
	} else if len(q.told) >= maxRemembered {
		clear(q.told)
	}
	q.told[text] = &repeats{at: now}
	return more, true
}
