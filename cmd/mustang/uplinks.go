// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

const (
	// settle is how long changes of devices, addresses and routes gather: a container's start makes several. Where a look at them
	// takes long they gather for longer, up to settleMax, so that looking takes little of the time.
	settle    = 50 * time.Millisecond
	settleMax = 200 * time.Millisecond
	// collectEvery is how often masqueraded flows that are over make room.
	collectEvery = 30 * time.Second
)

// followUplinks keeps up with what leads out of the host.
func (h *host) followUplinks(ctx context.Context) error {
	changes, err := h.links.Watch(ctx)
	if err != nil {
		return err
	}
	for {
		var again <-chan time.Time
		began := time.Now()
		err := h.driver.SyncUplinks()
		pause := min(max(settle, 10*time.Since(began)), settleMax)
		if err != nil {
			h.log.WithError(err).Warn("follow the uplinks")
			again = time.After(retryEvery) // on a quiet host nothing else would
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-h.uplinksSet:
		case _, ok := <-changes:
			if !ok {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// collectFlows ends masqueraded flows that are over.
func (h *host) collectFlows(ctx context.Context) error {
	return every(ctx, collectEvery, func() error {
		if err := h.datapath.CollectFlows(); err != nil {
			h.log.WithError(err).Warn("collect masqueraded flows")
		}
		if err := h.datapath.CollectTraffic(); err != nil {
			h.log.WithError(err).Warn("collect counters of backends")
		}
		return nil
	})
}
