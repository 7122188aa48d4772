"""A web server of the test's own on loopback, with the faults that image servers have."""
import http.server
import socket
import threading
import time


class Server:
    """files: name -> bytes. Each GET is noted in `seen` as (path, headers). `rules`: path -> a function of the handler."""

    def __init__(self, files=None, host="127.0.0.1", context=None):
        self.files, self.rules, self.seen = dict(files or {}), {}, []
        self.release = threading.Event()
        self.etags, self.ranges = True, True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                server.seen.append((self.path, self.headers))
                try:
                    server.rules.get(self.path.split("?")[0], server.plain)(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        self.httpd = http.server.ThreadingHTTPServer((host, 0), Handler)
        self.httpd.daemon_threads = True
        if context is not None:
            self.httpd.socket = context.wrap_socket(self.httpd.socket, server_side=True)
        self.port = self.httpd.server_address[1]
        self.scheme = "https" if context else "http"
        self.host = host
        threading.Thread(target=self.httpd.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path):
        return f"{self.scheme}://{self.host}:{self.port}/{path.lstrip('/')}"

    def gets(self, path):
        """The headers of the GETs of this path."""
        return [headers for seen, headers in list(self.seen) if seen == path]

    def etag(self, data):
        return f'"{hash(data) & 0xffffffffffff:x}"'

    # --- what it may answer ---

    def plain(self, handler):
        data = self.files.get(handler.path.split("?")[0].lstrip("/"))
        if data is None:
            return self.answer(handler, 404, b"<html>no such page</html>")
        wanted = handler.headers.get("Range")
        same = handler.headers.get("If-Range") in (None, self.etag(data))
        if wanted and self.ranges and same:
            begin = int(wanted.split("=")[1].split("-")[0])
            if begin >= len(data):
                return self.answer(handler, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return self.answer(handler, 206, data[begin:], {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}",
                                                            "ETag": self.etag(data)})
        return self.answer(handler, 200, data, {"ETag": self.etag(data)} if self.etags else {})

    @staticmethod
    def answer(handler, status, body, headers=None):
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def redirect(self, to, status=302):
        return lambda handler: self.answer(handler, status, b"", {"Location": to})

    def short(self, data, sent):
        """Says all of it, sends a part, and closes."""
        def rule(handler):
            handler.send_response(200)
            handler.send_header("ETag", self.etag(data))
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[:sent])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        return rule

    def held(self, data, sent):
        """Sends a part at once and the rest when `release` is set; ranges and conditions as a good server has them."""
        def rule(handler):
            if handler.headers.get("Range") or self.release.is_set():
                return self.plain(handler)
            handler.send_response(200)
            handler.send_header("ETag", self.etag(data))
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[:sent])
            handler.wfile.flush()
            self.release.wait(600)
            return handler.wfile.write(data[sent:])
        return rule

    def chunked(self, pieces, pause=0):
        """Without a length, piece by piece, for as long as the client listens."""
        def rule(handler):
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            for piece in pieces:
                handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                time.sleep(pause)
            handler.wfile.write(b"0\r\n\r\n")
        return rule

    def close(self):
        self.release.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
