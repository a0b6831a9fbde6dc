// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/mustang-net/mustang/monitor"
)

// Events travel as lines of JSON, each a monitor.Event, for as long as both sides want. The first line is empty: it
// says that the watch has begun.

// monitor answers GET /v1/events until the client or the daemon goes.
func (s server) monitor(stopping context.Context, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(stopping, cancel)()
	q := r.URL.Query()
	filter := monitor.Filter{Networks: q["network"], Services: q["service"], Containers: q["container"], Verdicts: q["verdict"]}
	out, begun := http.NewResponseController(w), false
	begin := func() {
		begun = true
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "\n")
		_ = out.Flush()
	}
	lines := json.NewEncoder(w)
	err := s.host.Monitor(ctx, filter, func(e monitor.Event) error {
		if e.Kind == monitor.EventBegun {
			begin()
			return nil
		}
		return errors.Join(lines.Encode(e), out.Flush())
	})
	if begun && stopping.Err() != nil {
		panic(http.ErrAbortHandler) // so that the client can tell it from an end
	}
	if err != nil && !begun {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(statusOf(err))
		_ = json.NewEncoder(w).Encode(errorBody{err.Error()})
	}
}

func (c *client) Monitor(ctx context.Context, f monitor.Filter, tell func(monitor.Event) error) error {
	query := url.Values{"network": f.Networks, "service": f.Services, "container": f.Containers, "verdict": f.Verdicts}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://mustang/v1/events?"+query.Encode(), nil)
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("ask the mustang daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	if err := tell(monitor.Event{Kind: monitor.EventBegun}); err != nil {
		return err
	}
	lines := json.NewDecoder(resp.Body)
	for {
		var e monitor.Event
		switch err := lines.Decode(&e); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the mustang daemon has stopped, and with it the events: ask again once it is there")
		case err != nil:
			return fmt.Errorf("read the mustang daemon's answer: %w", err)
		}
		if err := tell(e); err != nil {
			return err
		}
	}
}
