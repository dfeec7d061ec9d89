"""The smallest Serve application: for clusters whose own applications are not what is tested."""

from ray import serve
from starlette.requests import Request


class Hello:
    async def __call__(self, request: Request) -> str:
        return f"hello from {request.url.path}"


app = serve.deployment(name="Hello", ray_actor_options={"num_cpus": 0})(Hello).bind()
