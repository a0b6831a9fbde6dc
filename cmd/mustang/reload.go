// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/metrics"
)

// inForce is the configuration that a daemon works with, and how the last attempt to change it ended.
type inForce struct {
	config atomic.Pointer[config.Config]
	last   atomic.Pointer[attempt]
}

type attempt struct {
	at     time.Time
	failed bool
}

func (f *inForce) set(c config.Config) {
	f.config.Store(&c)
	f.last.Store(&attempt{at: time.Now()})
}

// reloader says when the configuration is to be read anew, and how.
type reloader struct {
	signals <-chan os.Signal
	load    func() (config.Config, error)
}

// newReloader waits for SIGHUP from the first moment on: one that nobody waits for would end the process.
func newReloader(load func() (config.Config, error)) (r reloader, stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGHUP)
	return reloader{signals, load}, func() { signal.Stop(signals) }
}

// reloads shows the metrics, and reads the configuration anew at every signal.
func (h *host) reloads(ctx context.Context, r reloader) error {
	err := h.show(h.inForce.config.Load().Metrics)
	if err != nil { // containers need the daemon more than somebody the metrics
		h.log.WithError(err).Error("the metrics are not shown, which is tried again")
	}
	for {
		var again <-chan time.Time
		if err != nil {
			again = time.After(retryEvery)
		}
		select {
		case <-ctx.Done():
			return h.show("")
		case <-again:
			if err = h.show(h.inForce.config.Load().Metrics); err == nil {
				h.log.Info("the metrics are shown now")
			}
		case <-r.signals:
			notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
			if h.reload(r.load) {
				err = nil
			}
			notify(daemon.SdNotifyReady)
		}
	}
}

// reload takes over what a running daemon can, and reports whether it has. A configuration that is wrong, or cannot be
// followed, changes nothing.
func (h *host) reload(load func() (config.Config, error)) bool {
	next, err := load()
	now := *h.inForce.config.Load()
	logAs(h.log, now) // what is wrong again is told again
	after, changed, waiting := now.Reload(next)
	if err == nil && (after.Metrics != now.Metrics || h.shown == nil) {
		err = h.show(after.Metrics) // first: it is what may fail
	}
	if err != nil {
		h.inForce.last.Store(&attempt{at: time.Now(), failed: true})
		for line := range strings.SplitSeq(err.Error(), "\n") {
			h.log.Errorf("the configuration is not read anew, and the one before goes on: %s", line)
		}
		return false
	}
	h.inForce.set(after)
	logAs(h.log, after)
	h.driver.SetUplinks(after.Uplinks)
	select {
	case h.uplinksSet <- struct{}{}:
	default: // nobody has looked since the last time, and will
	}
	values := logrus.Fields{}
	for _, s := range changed {
		values[s.Key] = strings.Trim(s.Value, `"`)
	}
	if len(values)+len(waiting) == 0 {
		h.log.Info("the configuration was read anew, and has not changed")
	} else {
		h.log.WithFields(values).Info("the configuration was read anew")
	}
	for _, s := range waiting {
		h.log.WithField("key", s.Key).Warnf("%s = %s waits for the daemon's next start: restart the daemon, which interrupts no connection", s.Key, s.Value)
	}
	return true
}

// show has the metrics shown at an address or a socket, "" for nowhere, and no longer where they were before.
func (h *host) show(at string) error {
	var next *metrics.Server
	if at != "" {
		l, err := listenMetrics(at)
		if err != nil {
			return err
		}
		if strings.HasPrefix(at, "/") {
			l = last(at, l, api.Listen, h.log)
		}
		next = h.metrics.Serve(l)
	}
	before := h.shown
	h.shown = next
	if before != nil {
		return before.Close()
	}
	return nil
}

func listenMetrics(at string) (net.Listener, error) {
	if strings.HasPrefix(at, "/") {
		l, err := api.Listen(at)
		if err != nil {
			return nil, fmt.Errorf("show the metrics: %w", err)
		}
		return l, nil
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, fmt.Errorf("show the metrics: %w: choose another address for the key metrics, or end who has it (ss -ltnp)", err)
	}
	return l, nil
}
