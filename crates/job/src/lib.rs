//! One Solve from request to response.
