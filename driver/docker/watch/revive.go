// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"github.com/sirupsen/logrus"
)

// startTimeout is how long a start may take that nobody waits for.
const startTimeout = time.Minute

// maxStarts run at the same time.
const maxStarts = 4

// away is what the engine says of a start that failed because no daemon of ours was there to answer: it found no socket, the
// call got no answer (Go's text of a failed POST), or a daemon that could not do it yet.
var away = regexp.MustCompile(`plugin "[^"]*" not found|(NetworkDriver|IpamDriver)\.\w+": |mustang is not ready`)

// failedWithoutUs tells whether the engine would have kept the container running, had we been there. What a user has stopped
// failed at nothing, and what has never run is for whom it was refused to.
func failedWithoutUs(c container) bool {
	policy := c.HostConfig.RestartPolicy.Name
	return !c.State.Running && !c.State.StartedAt.IsZero() && (policy == "always" || policy == "unless-stopped") && away.MatchString(c.State.Error)
}

// revive starts a container whose start failed for want of a daemon: the engine tries once. It is tried once for each list.
func (w *Watcher) revive(r *record) {
	if r.revived || !failedWithoutUs(*r.info) {
		return
	}
	r.revived = true
	log := w.log.WithFields(logrus.Fields{"container": r.id, "name": r.info.Name, "because": r.info.State.Error})
	go func() {
		w.starts <- struct{}{}
		defer func() { <-w.starts }()
		ctx, cancel := context.WithTimeout(w.ctx, startTimeout)
		defer cancel()
		if err := w.client.start(ctx, r.id); err != nil {
			log.WithError(err).Warn("start a container that had failed to start while mustang was away")
			return
		}
		log.Info("started a container that had failed to start while mustang was away")
	}()
}

// start starts a container; one that runs is no error.
func (c *Client) start(ctx context.Context, id string) error {
	resp, err := c.send(ctx, http.MethodPost, *c.prefix.Load()+"/containers/"+url.PathEscape(id)+"/start", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
