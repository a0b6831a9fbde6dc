// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The limits of scrapes. Who is beyond them gets 503 at once, or when the time is up.
const (
	maxScrapes = 2
	scrapeTime = 10 * time.Second
)

// Server shows the metrics on one listener.
type Server struct {
	http   *http.Server
	served chan error
}

// Serve begins to show the metrics at /metrics of l, until [Server.Close].
func (m *Metrics) Serve(l net.Listener) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: logger{m}, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTime,
		DisableCompression: true, // they do not leave the host, and would cost the daemon more than they are
	}))
	s := &Server{served: make(chan error, 1), http: &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: scrapeTime + 5*time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
	go func() { s.served <- s.http.Serve(l) }()
	return s
}

// Shown tells whether it is a mustang that answers at an address, ADDRESS:PORT.
func Shown(at string) bool {
	client := http.Client{Timeout: 2 * time.Second}
	reply, err := client.Get("http://" + at + "/metrics")
	if err != nil {
		return false
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(io.LimitReader(reply.Body, 16<<20))
	return err == nil && bytes.Contains(text, []byte(buildInfo.Name))
}

// Close stops to show them and closes the listener. A scrape that goes on is cut off.
func (s *Server) Close() error {
	err := s.http.Close()
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// logger takes what promhttp has to say.
type logger struct{ m *Metrics }

func (l logger) Println(v ...any) { l.m.log.Warn(append([]any{"metrics: "}, v...)...) }
