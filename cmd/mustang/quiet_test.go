// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
)

// A loop that fails for hours writes a line when it begins, when the reason changes, and every ten minutes.
func TestRepeatedWarningsAreWrittenOnChange(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0)
	log := logrus.New()
	log.SetOutput(&out)
	log.SetFormatter(&quiet{Formatter: &logrus.TextFormatter{DisableTimestamp: true}, told: map[string]*repeats{}, now: func() time.Time { return now }})
	lines := func(what func()) int {
		out.Reset()
		what()
		return strings.Count(out.String(), "\n")
	}
	fails := func(why string) { log.WithError(errors.New(why)).Warn("write services to the maps") }

	assert.Equal(t, 1, lines(func() { fails("full"); fails("full"); fails("full") }))
	assert.Equal(t, 1, lines(func() { fails("denied"); fails("denied") }), "another reason")
	now = now.Add(repeatAfter)
	assert.Equal(t, 1, lines(func() { fails("full") }))
	assert.Contains(t, out.String(), "repeated=2")
	assert.Equal(t, 2, lines(func() { log.Info("start"); log.Info("start") }), "what is no warning is never left away")
	assert.Equal(t, 2, lines(func() {
		for range 2 {
			log.WithFields(logrus.Fields{"request": "0123abcd"}).WithError(errors.New("no")).Error("call failed")
		}
	}), "every error that somebody was told of is there")
	assert.Equal(t, 2, lines(func() {
		log.WithField("container", "a").Warn("remove what a container has left")
		log.WithField("container", "b").Warn("remove what a container has left")
	}))
	for i := range 3 * maxRemembered {
		log.Warn(fmt.Sprint("warning ", i))
	}
	assert.LessOrEqual(t, len(log.Formatter.(*quiet).told), maxRemembered)
}
